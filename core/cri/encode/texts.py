"""Text that comes from outside, such as a program's last words, as the wire takes it."""


def clean(text: str) -> str:
    """Replace what is no Unicode text; protobuf refuses lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
