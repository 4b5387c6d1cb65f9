"""Image references and the credentials of a pull."""

import base64
import binascii

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.image import Credentials
from crinoid.core.api.values.pod import PodMetadata
from crinoid.core.cri.decode.checks import check_reference, require_text
from crinoid.core.cri.wire import api_pb2


def decode_image(
    request: api_pb2.PullImageRequest | api_pb2.ImageStatusRequest | api_pb2.RemoveImageRequest,
) -> str:
    """Read the reference or id that a request is about."""
    return check_reference(require_text(request.image.image.strip(), "image.image"), "image.image")


def decode_pod_of_pull(request: api_pb2.PullImageRequest) -> PodMetadata | None:
    """Read which pod an image is pulled for: a kubelet makes the pod first, and says so in each pull.

    It names the runtime handler as well only with the feature gate RuntimeClassInImageCriApi.
    """
    metadata = request.sandbox_config.metadata
    if not metadata.name:
        return None
    return PodMetadata(metadata.name, metadata.namespace, metadata.uid, metadata.attempt)


def decode_image_filter(request: api_pb2.ListImagesRequest | api_pb2.StreamImagesRequest) -> str:
    """Read the reference that a list is narrowed to; empty for all images."""
    return request.filter.image.image.strip()


def decode_credentials(request: api_pb2.PullImageRequest) -> Credentials | None:
    """Read the credentials, if there are any; no error and no log ever repeats a part of them.

    A user name in a field of its own goes before ``auth``, the same in the form of docker's config.json.
    """
    auth = request.auth
    if not any((auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token)):
        return None
    username, password = auth.username, auth.password
    if auth.auth and not username:
        username, password = _decode_basic(auth.auth)
    return Credentials(username, password, auth.server_address.strip(), auth.identity_token, auth.registry_token)


def _decode_basic(text: str) -> tuple[str, str]:
    """Split base64 of ``user:password``; some writers pad it with NUL bytes."""
    try:
        plain = base64.b64decode(text.strip(), validate=True).decode("utf-8").rstrip("\0")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        plain = ""
    username, colon, password = plain.partition(":")
    if not colon:
        raise InvalidArgument("auth.auth is not user:password in base64")
    return username, password
