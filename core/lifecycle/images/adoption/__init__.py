"""Images of the runtime that was on this node before: found in its files, which are read and never written."""
