"""Where in a TOML file each key stands: tomllib tells values but no lines, so this reads the keys once more.

Called by ``loader`` on text that tomllib has accepted already; therefore it need not judge, only find its way.
A path is a tuple of keys, and of indexes into arrays: ``("runtimes", "fast", "options", "binary")``.
"""

import re
import tomllib
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|' + r"'''.*?'''(?:'{0,2})|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}\n#]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


def index_keys(text: str) -> Mapping[KeyPath, int]:
    """Return the line, from 1 on, of every key, table and array element of a valid TOML document."""
    scanner = _Scanner(text)
    scanner.read_document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._table: KeyPath = ()
        self._counts: dict[KeyPath, int] = {}  # how many tables an array of tables has so far
        self.lines: dict[KeyPath, int] = {}

    def read_document(self) -> None:
        while self._skip_blank():
            if self._peek("["):
                self._read_header()
            else:
                self._read_pair(self._table)

    def _read_header(self) -> None:
        """Read ``[a.b]`` or ``[[a.b]]``; below an array of tables a header means its last element."""
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        keys = self._read_keys()
        for key in keys[:-1]:
            path = self._enter((*path, key), line)
        path = (*path, keys[-1])
        if is_array:
            self.lines.setdefault(path, line)
            self._counts[path] = self._counts.get(path, 0) + 1
        self._table = self._enter(path, line)
        self.lines.setdefault(self._table, line)
        self._at += 2 if is_array else 1

    def _enter(self, path: KeyPath, line: int) -> KeyPath:
        self.lines.setdefault(path, line)
        return (*path, self._counts[path] - 1) if path in self._counts else path

    def _read_pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for key in self._read_keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._read_value(path)

    def _read_keys(self) -> list[str]:
        keys = [self._read_key()]
        while self._skip_blank() and self._peek("."):
            self._at += 1
            self._skip_blank()
            keys.append(self._read_key())
        return keys

    def _read_key(self) -> str:
        self._skip_blank()
        if bare := _BARE.match(self._text, self._at):
            self._at = bare.end()
            return bare[0]
        quoted = self._read_string()
        return str(tomllib.loads(f"key = {quoted}")["key"])

    def _read_value(self, path: KeyPath) -> None:
        self._skip_blank()
        if self._peek("["):
            self._read_array(path)
        elif self._peek("{"):
            self._read_inline_table(path)
        elif self._text[self._at] in "\"'":
            self._read_string()
        else:
            scalar = _SCALAR.match(self._text, self._at)
            self._at = scalar.end() if scalar else self._at + 1

    def _read_array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._skip_blank() and not self._peek("]"):
            self.lines[(*path, index)] = self._line()
            self._read_value((*path, index))
            index += 1
            self._skip_comma()
        self._at += 1

    def _read_inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._skip_blank() and not self._peek("}"):
            self._read_pair(path)
            self._skip_comma()
        self._at += 1

    def _read_string(self) -> str:
        match = _STRING.match(self._text, self._at)
        assert match is not None, "tomllib has accepted this text"
        self._at = match.end()
        return match[0]

    def _skip_comma(self) -> None:
        self._skip_blank()
        if self._peek(","):
            self._at += 1

    def _skip_blank(self) -> bool:
        """Go past white space, line ends and comments; tell whether anything is left."""
        match = _BLANK.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return self._at < len(self._text)

    def _peek(self, character: str) -> bool:
        return self._text.startswith(character, self._at)

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1
