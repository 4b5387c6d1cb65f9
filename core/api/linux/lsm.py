"""The security modules that confine by label or profile: what the kernel has of AppArmor and SELinux, and relabelling.

Sources: apparmor's securityfs, selinuxfs; ``security.selinux`` of xattr(7). A host without a module is no error here:
callers decide what that means.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_APPARMOR = Path("/sys/kernel/security/apparmor")
_APPARMOR_SWITCH = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX = Path("/sys/fs/selinux")
_LABEL = "security.selinux"


def has_apparmor() -> bool:
    """Return whether the kernel confines by AppArmor."""
    try:
        return _APPARMOR.is_dir() and _APPARMOR_SWITCH.read_text().startswith("Y")
    except OSError:
        return False


def apparmor_profiles() -> frozenset[str]:
    """Return the names of the loaded profiles. Raises OSError when they can't be read."""
    lines = (_APPARMOR / "profiles").read_text().splitlines()
    return frozenset(line.rpartition(" (")[0] for line in lines)


def has_selinux() -> bool:
    """Return whether the kernel has an SELinux policy in force, enforcing or not."""
    return (_SELINUX / "enforce").exists()


def relabel(path: Path, label: str, attribute: str = _LABEL) -> None:
    """Give a file, or a tree, an SELinux label; follows no link, stays on its file system.

    A file system that keeps no labels is left as it is, as with peers. Raises OSError with the path.
    """
    for each in _files_of(path):
        try:
            os.setxattr(each, attribute, label.encode() + b"\0", follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EROFS):
                return
            raise


def _files_of(path: Path) -> Iterator[str]:
    top = path.lstat()
    yield str(path)
    for directory, directories, names in os.walk(path):
        directories[:] = [name for name in directories if _device(f"{directory}/{name}") == top.st_dev]
        yield from (f"{directory}/{name}" for name in (*directories, *names))


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1
