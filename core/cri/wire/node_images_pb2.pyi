from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlobDescriptor(_message.Message):
    __slots__ = ("media_type", "digest", "size", "platform")
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    media_type: str
    digest: str
    size: int
    platform: str
    def __init__(self, media_type: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., platform: _Optional[str] = ...) -> None: ...

class LoadImageRequest(_message.Message):
    __slots__ = ("names", "targets", "platform")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    targets: _containers.RepeatedCompositeFieldContainer[BlobDescriptor]
    platform: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[_Union[BlobDescriptor, _Mapping]]] = ..., platform: _Optional[str] = ...) -> None: ...

class LoadImageResponse(_message.Message):
    __slots__ = ("session", "max_piece_bytes", "wanted", "image_id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MAX_PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    session: str
    max_piece_bytes: int
    wanted: BlobWanted
    image_id: str
    def __init__(self, session: _Optional[str] = ..., max_piece_bytes: _Optional[int] = ..., wanted: _Optional[_Union[BlobWanted, _Mapping]] = ..., image_id: _Optional[str] = ...) -> None: ...

class BlobWanted(_message.Message):
    __slots__ = ("number", "digest", "size", "offset")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    size: int
    offset: int
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ProvideBlobRequest(_message.Message):
    __slots__ = ("session", "number", "content", "last", "fault")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    session: str
    number: int
    content: bytes
    last: bool
    fault: str
    def __init__(self, session: _Optional[str] = ..., number: _Optional[int] = ..., content: _Optional[bytes] = ..., last: bool = ..., fault: _Optional[str] = ...) -> None: ...

class ProvideBlobResponse(_message.Message):
    __slots__ = ("enough",)
    ENOUGH_FIELD_NUMBER: _ClassVar[int]
    enough: bool
    def __init__(self, enough: bool = ...) -> None: ...

class SaveImagesRequest(_message.Message):
    __slots__ = ("images", "keep_index")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    KEEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[str]
    keep_index: bool
    def __init__(self, images: _Optional[_Iterable[str]] = ..., keep_index: bool = ...) -> None: ...

class SavedImage(_message.Message):
    __slots__ = ("names", "target", "config", "layers")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    target: BlobDescriptor
    config: BlobDescriptor
    layers: _containers.RepeatedCompositeFieldContainer[BlobDescriptor]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., target: _Optional[_Union[BlobDescriptor, _Mapping]] = ..., config: _Optional[_Union[BlobDescriptor, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[BlobDescriptor, _Mapping]]] = ...) -> None: ...

class SaveImagesResponse(_message.Message):
    __slots__ = ("images", "blobs", "content")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[SavedImage]
    blobs: _containers.RepeatedCompositeFieldContainer[BlobDescriptor]
    content: bytes
    def __init__(self, images: _Optional[_Iterable[_Union[SavedImage, _Mapping]]] = ..., blobs: _Optional[_Iterable[_Union[BlobDescriptor, _Mapping]]] = ..., content: _Optional[bytes] = ...) -> None: ...

class TagImageRequest(_message.Message):
    __slots__ = ("image", "name")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    image: str
    name: str
    def __init__(self, image: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class TagImageResponse(_message.Message):
    __slots__ = ("image_id", "name")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    name: str
    def __init__(self, image_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class UntagImageRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UntagImageResponse(_message.Message):
    __slots__ = ("image_id", "name", "left")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    name: str
    left: int
    def __init__(self, image_id: _Optional[str] = ..., name: _Optional[str] = ..., left: _Optional[int] = ...) -> None: ...

class ImageDiskUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImageUsage(_message.Message):
    __slots__ = ("id", "names", "unique_bytes", "shared_bytes", "containers", "pinned", "layers")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    unique_bytes: int
    shared_bytes: int
    containers: int
    pinned: bool
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., unique_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., containers: _Optional[int] = ..., pinned: bool = ..., layers: _Optional[_Iterable[str]] = ...) -> None: ...

class LayerUsage(_message.Message):
    __slots__ = ("chain_id", "snapshotter", "unpacked_bytes", "blob_bytes", "images", "digest")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    chain_id: str
    snapshotter: str
    unpacked_bytes: int
    blob_bytes: int
    images: int
    digest: str
    def __init__(self, chain_id: _Optional[str] = ..., snapshotter: _Optional[str] = ..., unpacked_bytes: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., images: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class WritableUsage(_message.Message):
    __slots__ = ("container_id", "name", "state", "bytes")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    name: str
    state: str
    bytes: int
    def __init__(self, container_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class VolumeUsage(_message.Message):
    __slots__ = ("container_id", "bytes")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    bytes: int
    def __init__(self, container_id: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class ImageDiskUsageResponse(_message.Message):
    __slots__ = ("images", "layers", "writables", "volumes", "images_bytes", "images_reclaimable_bytes", "writables_bytes", "writables_reclaimable_bytes", "volumes_bytes", "volumes_reclaimable_bytes")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WRITABLES_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_RECLAIMABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITABLES_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITABLES_RECLAIMABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_RECLAIMABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImageUsage]
    layers: _containers.RepeatedCompositeFieldContainer[LayerUsage]
    writables: _containers.RepeatedCompositeFieldContainer[WritableUsage]
    volumes: _containers.RepeatedCompositeFieldContainer[VolumeUsage]
    images_bytes: int
    images_reclaimable_bytes: int
    writables_bytes: int
    writables_reclaimable_bytes: int
    volumes_bytes: int
    volumes_reclaimable_bytes: int
    def __init__(self, images: _Optional[_Iterable[_Union[ImageUsage, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerUsage, _Mapping]]] = ..., writables: _Optional[_Iterable[_Union[WritableUsage, _Mapping]]] = ..., volumes: _Optional[_Iterable[_Union[VolumeUsage, _Mapping]]] = ..., images_bytes: _Optional[int] = ..., images_reclaimable_bytes: _Optional[int] = ..., writables_bytes: _Optional[int] = ..., writables_reclaimable_bytes: _Optional[int] = ..., volumes_bytes: _Optional[int] = ..., volumes_reclaimable_bytes: _Optional[int] = ...) -> None: ...

class AdoptImagesRequest(_message.Message):
    __slots__ = ("runtime", "root", "namespace", "names", "copy")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    root: str
    namespace: str
    names: _containers.RepeatedScalarFieldContainer[str]
    copy: bool
    def __init__(self, runtime: _Optional[str] = ..., root: _Optional[str] = ..., namespace: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., copy: bool = ...) -> None: ...

class AdoptImagesResponse(_message.Message):
    __slots__ = ("name", "image_id", "cloned_bytes", "linked_bytes", "copied_bytes", "fault", "total")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CLONED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    image_id: str
    cloned_bytes: int
    linked_bytes: int
    copied_bytes: int
    fault: str
    total: int
    def __init__(self, name: _Optional[str] = ..., image_id: _Optional[str] = ..., cloned_bytes: _Optional[int] = ..., linked_bytes: _Optional[int] = ..., copied_bytes: _Optional[int] = ..., fault: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...
