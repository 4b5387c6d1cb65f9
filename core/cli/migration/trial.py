"""Checks a draft as ``config check`` does, and takes out what does not hold, so that what is left starts."""

import tempfile
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.migration.draft import Draft, Outcome
from crinoid.core.config.loader import ConfigPaths, examine
from crinoid.core.config.origins import Problem, name_key, refuse
from crinoid.core.slots.selection import examine as examine_slots

_ROUNDS = 30
_IN_USE = "Address already in use"
_CREDENTIALS = "docker configuration "


def make_startable(draft: Draft) -> list[str]:
    """Try the draft in a directory that is thrown away, until nothing stands against it; return notes.

    Raises ConfigurationError for what can't be taken out.
    """
    for _ in range(_ROUNDS):
        problems, notes = _examine(draft)
        if not problems:
            return notes
        for problem in problems:
            _withdraw(draft, problem)
    refuse(problems)
    return notes


def write(files: dict[str, tuple[bytes, int]], directory: Path) -> None:
    """Write the draft's files, each with its mode from the first byte on."""
    for name, (content, mode) in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode)
        path.write_bytes(content)


def _examine(draft: Draft) -> tuple[list[Problem], list[str]]:
    from crinoid.core.daemon.preflight import find_problems  # it imports what serves, which takes long

    with tempfile.TemporaryDirectory(prefix="crinoid-import-") as name:
        directory = Path(name)
        write(draft.files(directory), directory)
        loaded, problems = examine(ConfigPaths.at(directory / "config.toml"))
        slots, of_drivers = examine_slots(loaded.config, loaded.origins)
        problems += of_drivers
        if problems:
            return problems, []
        of_start, notes = find_problems(loaded, slots)
        # Keys of a hosts.toml that nothing reads were told with the file that they came from.
        notes = [note for note in notes if name not in note]
        in_use = [problem for problem in of_start if _IN_USE in problem.message]
        notes += [f"{name_key(one.key)}: {one.message} now: by the runtime that is to go?" for one in in_use]
        # The importer's own file is read beside those of the draft.
        home = f"{_CREDENTIALS}{Path('~/.docker/config.json').expanduser()}: "
        of_home = [one for one in of_start if home in one.message and not _named(draft, one)]
        notes += [one.message for one in of_home]
        return [one for one in of_start if one not in (*in_use, *of_home)], notes


def _named(draft: Draft, problem: Problem) -> list[str]:
    """Return the registries of the draft whose directory a problem is about."""
    if problem.key[:2] != ("registries", "distribution"):
        return []
    directories = {name.partition("/")[0] for name in draft.hosts.files()}
    return sorted(one for one in directories if f"/certs.d/{one}/" in problem.message)


def _withdraw(draft: Draft, problem: Problem) -> None:
    """Take out what a problem is about: a registry's directory, a runtime, or the key alone."""
    key, message = problem.key, problem.message
    if named := _named(draft, problem):
        for name in named:
            draft.hosts.copies.pop(name, None)
            draft.hosts.registries.pop(name, None)
            draft.hosts.tls.pop(name, None)
        why = f"it can't be used as it is: {message[message.index('/certs.d/') + 1 :]}"
        draft.tell(Outcome.LOST, "certs.d", ", ".join(named), why)
        return
    if _withdraw_credentials(draft, message):
        return
    if key[:1] == ("runtimes",) and len(key) > 1 and key[2:] in ((), ("driver",), ("options",)):
        name = str(key[1])
        place = draft.origins.get(("runtimes", name, "driver"), "import")
        draft.remove(("runtimes", name))
        draft.set(("runtimes", name, "driver"), "runc", place)
        draft.set(("runtimes", name, "enabled"), False, "see imported.txt")
        draft.tell(Outcome.LOST, place, f"runtime {name}", message)
        if draft.get("pods", "default_runtime", default="runc") == name:
            others = [other for other, slot in draft.get("runtimes", default={}).items() if slot.get("enabled", True)]
            if name == "runc" and not others:
                raise ConfigurationError(f"the default runtime can't be used: {message}")
            draft.set(("pods", "default_runtime"), others[0] if name == "runc" else "runc", "the only one that works")
            draft.tell(Outcome.LOST, place, "default runtime", f"{name} can't be used; see pods.default_runtime")
        return
    if key == ("streaming",):  # its certificates: none is of use without the others
        for name in ("tls_key", "client_ca"):
            if draft.get("streaming", name):
                draft.remove(("streaming", name))
        key = ("streaming", "tls_cert")
    if key[:1] == ("extensions",) and len(key) > 1:
        key = key[:2]
    place = draft.remove(key)
    if not place:
        refuse([problem])
    draft.tell(Outcome.LOST, place, name_key(key), message)


def _withdraw_credentials(draft: Draft, message: str) -> bool:
    """Take out a file of credentials that can't be read, or an entry of the draft's own; return whether it was that."""
    _, form, said = message.partition(_CREDENTIALS)
    for path in draft.docker_configs:
        if said.startswith(f"{path}: "):
            draft.docker_configs.remove(path)
            draft.tell(Outcome.LOST, path, "credentials", f"the file can't be used as it is: {form}{said}")
            return True
    for name in draft.auths:
        _, entry, said = message.partition(f"/registry/config.json: auths.{name}: ")
        if entry:
            del draft.auths[name]
            draft.tell(Outcome.LOST, "registry/config.json", name, f"its credentials can't be used: {said}")
            return True
    return False
