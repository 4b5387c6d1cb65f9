"""What tests share: images built in pure Python, real registries on loopback."""
