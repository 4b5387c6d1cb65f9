"""What dpkg knows of a build and runs: control fields, and the maintainer scripts. None of them stops an installation.

A running daemon is taken over by the new version, by the unit's reload: pods run on, and no call fails. Without systemd
nothing is started or stopped; the script says what to do.
"""

from crinoid.core.cli.node_build.site_file import Site
from crinoid.core.cli.node_build.tree import CONFIG, Tree

_POSTINST = """\
#!/bin/sh
# Never fails for what the host lacks: `crinoid check` says it, and whoever installs decides.
set -u
prefix={prefix}
[ "$1" = configure ] || exit 0
for name in {groups}; do
    getent group "$name" >/dev/null || groupadd --system "$name" || echo "{package}: group $name could not be made" >&2
done
for name in {users}; do
    getent passwd "$name" >/dev/null || useradd --system --user-group --no-create-home --home-dir /nonexistent \\
        --shell /usr/sbin/nologin "$name" || echo "{package}: user $name could not be made" >&2
done
"$prefix/bin/python3" -I -m compileall -q -j 0 "$prefix/lib" >/dev/null 2>&1 || :
"$prefix/bin/crinoid" config check || echo "{package}: the configuration can't be used: crinoid will not start" >&2
"$prefix/bin/crinoid" check || echo "{package}: this host is not fit for crinoid yet: see above" >&2
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    {enable}
    if systemctl --quiet is-active crinoid.service; then
        systemctl reload crinoid.service || echo "{package}: the daemon of before serves on: journalctl -u crinoid" >&2
    fi
elif [ -n "${{2:-}}" ]; then
    echo "{package}: without systemd the daemon of before serves on: crinoid upgrade takes over" >&2
fi
exit 0
"""
_PRERM = """\
#!/bin/sh
# Pods run on when the daemon ends; remove them first (crinoid ctl rmp --all --force) where they are to end, too.
set -u
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now crinoid.service || :
fi
if [ "$1" = remove ] && [ -d {prefix}/lib ]; then
    find {prefix}/lib -name __pycache__ -type d -prune -exec rm -rf {{}} + || :
fi
exit 0
"""
_POSTRM = """\
#!/bin/sh
# Records and images (/var/lib/crinoid) are never removed by the package.
set -u
if [ "$1" = upgrade ] && [ -d {prefix}/lib ]; then
    find {prefix}/lib -name __pycache__ -type d -prune -exec rm -rf {{}} + || :
fi
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
exit 0
"""


def control_files(site: Site, tree: Tree) -> dict[str, tuple[bytes, int]]:
    """Return the files of the control archive, with their modes."""
    minor = int(site.python.partition(".")[2])
    depends = [f"python3 (>= 3.{minor})", f"python3 (<< 3.{minor + 1})", *site.depends]
    size = sum(len(entry.content) for entry in tree.entries.values()) // 1024 + 1
    fields = {
        "Package": site.name,
        "Version": site.version,
        "Architecture": site.architecture,
        "Maintainer": site.maintainer,
        "Installed-Size": str(size),
        "Depends": ", ".join(depends),
        "Section": "admin",
        "Priority": "optional",
        "Description": site.description,
    }
    names = {
        "prefix": site.prefix,
        "package": site.name,
        "groups": " ".join(site.groups),
        "users": " ".join(site.users),
        "enable": "systemctl enable crinoid.service || :" if site.unit.enable else ":",
    }
    config = "".join(f"{path}\n" for path, entry in tree.sorted() if entry.is_config and path.startswith(CONFIG[:5]))
    files = {
        "control": ("".join(f"{name}: {value}\n" for name, value in fields.items()).encode(), 0o644),
        "postinst": (_POSTINST.format(**names).encode(), 0o755),
        "prerm": (_PRERM.format(**names).encode(), 0o755),
        "postrm": (_POSTRM.format(**names).encode(), 0o755),
    }
    return files | ({"conffiles": (config.encode(), 0o644)} if config else {})
