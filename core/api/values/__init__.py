"""Values that cross a hook: frozen, slotted dataclasses, in the field's own terms.

They know neither gRPC nor JSON. A field that the CRI leaves unset is ``None`` where unset differs from the
zero value, and the zero value elsewhere.
"""
