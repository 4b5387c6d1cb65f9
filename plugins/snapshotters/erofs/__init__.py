"""The ``erofs`` snapshotter: each layer one read-only file system image, stacked by overlay."""
