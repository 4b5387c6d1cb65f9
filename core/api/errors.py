"""The one error tree: what goes wrong anywhere below ``cri`` is raised as one of these.

Each class names its gRPC status code by name (``grpc_status``) and a stable, machine-readable ``reason``;
``cri`` converts them in one place. A message names the object, the act and what to do about it; the slot
wrapper adds the role, driver and hook at fault to what a driver raises.
"""

import errno
import os
from typing import ClassVar


class CrinoidError(Exception):
    """Base of all errors that may reach a client.

    Parameters: ``message``, a sentence for an operator. Drivers raise the subclasses; an exception of any
    other class that leaves a driver is reported as :class:`DriverError`.
    """

    grpc_status: ClassVar[str] = "UNKNOWN"
    reason: ClassVar[str] = "Unknown"
    cli_exit_code: ClassVar[int] = 1
    """What a command ends with that this error ends."""

    @property
    def message(self) -> str:
        """The sentence for the operator, with every note that was added on the way up."""
        return "; ".join([str(self), *getattr(self, "__notes__", ())])


class InvalidArgument(CrinoidError):
    """The request itself is wrong; sending it again can't help."""

    grpc_status = "INVALID_ARGUMENT"
    reason = "InvalidArgument"


class RuntimeRefused(InvalidArgument):
    """A runtime was given a container, or an exec process, and says that it can't be: no such program, no such user.

    Raised by the hook ``create``, it becomes the end of the container at its start (``StartError``, exit code 128), as
    with containerd: a pod that is not to be restarted fails, rather than to wait for ever. Every other error of
    ``create`` is that of CreateContainer, which the kubelet tries again.
    """

    reason = "RuntimeRefused"


class NotFound(CrinoidError):
    """The pod, container, image or file that was named does not exist."""

    grpc_status = "NOT_FOUND"
    reason = "NotFound"


class NotServed(NotFound):
    """An image source has nothing of the kind that was asked for, such as a directory of images that is not there.

    Where another source has an answer, nobody needs to hear of this one.
    """

    reason = "NotServed"


class AlreadyExists(CrinoidError):
    """The name is taken by an object that is not the one asked for."""

    grpc_status = "ALREADY_EXISTS"
    reason = "AlreadyExists"


class FailedPrecondition(CrinoidError):
    """The object is in a state in which the act has no meaning, such as exec in an exited container."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "FailedPrecondition"


class Refused(CrinoidError):
    """An extension does not want the act to happen: no failure of the extension, so no ``on_failure`` ignores it."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "Refused"


class Unsupported(CrinoidError):
    """The request needs what this host, kernel or driver lacks."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "Unsupported"


class NotImplementedHere(CrinoidError):
    """The RPC or hook is not served."""

    grpc_status = "UNIMPLEMENTED"
    reason = "NotImplemented"


class PermissionDenied(CrinoidError):
    """A registry refused the credentials, or the host refused the daemon."""

    grpc_status = "PERMISSION_DENIED"
    reason = "PermissionDenied"


class Unauthenticated(PermissionDenied):
    """A registry wants credentials and got none, or wrong ones."""

    grpc_status = "UNAUTHENTICATED"
    reason = "Unauthenticated"


class ResourceExhausted(CrinoidError):
    """Disk, addresses, process ids or a message's size limit are used up."""

    grpc_status = "RESOURCE_EXHAUSTED"
    reason = "ResourceExhausted"


class DeadlineExceeded(CrinoidError):
    """A wait reached its deadline; the message says what was waited for."""

    grpc_status = "DEADLINE_EXCEEDED"
    reason = "DeadlineExceeded"


class Unavailable(CrinoidError):
    """A passing fault: a registry that is down, a network that is not ready. The same call may succeed later."""

    grpc_status = "UNAVAILABLE"
    reason = "Unavailable"


class StateNotUsable(Unavailable):
    """The daemon's own state can't be read or written now (an I/O error), or is damaged; it is nobody else's fault."""

    reason = "StateNotUsable"


class RegistryUnavailable(Unavailable):
    """No registry could be reached for a pull.

    The kubelet makes this word at the beginning of a message the reason that it shows of the pod, if the status is
    UNKNOWN: it takes off that one alone before it looks (cri-api, pkg/errors).
    """

    grpc_status = "UNKNOWN"
    reason = "RegistryUnavailable"


class SignatureValidationFailed(Refused):
    """An image's signature is missing or wrong, by an extension that checks them; the kubelet shows this word, too."""

    grpc_status = "UNKNOWN"
    reason = "SignatureValidationFailed"


class CorruptContent(CrinoidError):
    """Bytes that are not what their digest, their format or their record says."""

    grpc_status = "DATA_LOSS"
    reason = "CorruptContent"


class DriverError(CrinoidError):
    """A plugin, or the program it drives, failed: names the role, driver, hook and what was said."""

    grpc_status = "INTERNAL"
    reason = "DriverError"


class BadAdjustment(DriverError):
    """What an extension wants of a container can't be: names the extension and the field. It is its failure."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "BadAdjustment"


class CommandFailed(DriverError):
    """A program that was run ended with an error.

    Parameters: ``command``, the argument vector; ``exit_code``, negative for a signal; ``stderr``, its last
    words.
    """

    reason = "CommandFailed"

    def __init__(self, command: tuple[str, ...], exit_code: int, stderr: str) -> None:
        self.command = command
        self.exit_code = exit_code
        self.stderr = stderr
        super().__init__(f"{command[0]} {_ended(exit_code)}: {stderr.strip()[-2000:] or 'it said nothing'}")


class ConfigurationError(CrinoidError):
    """The daemon can't start, or can't use a slot, with the configuration it was given."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "ConfigurationError"
    cli_exit_code = os.EX_CONFIG


class StateUnavailable(CrinoidError):
    """The daemon can't start, as its state can't be had now (a full or read-only disk, another process's lock).

    Nothing was changed; the same start succeeds once the cause is gone.
    """

    grpc_status = "UNAVAILABLE"
    reason = "StateUnavailable"
    cli_exit_code = os.EX_TEMPFAIL

    PASSING: ClassVar[frozenset[int]] = frozenset(
        {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}
    )
    """What the kernel says of a host that is not fit now, and was before."""


def _ended(exit_code: int) -> str:
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
