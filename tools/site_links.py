"""A hook of MkDocs: links that lead out of ``docs/``, as to a test, become names of files of the repository.

The pages are read in the repository, too, where such links lead somewhere; on the site they would lead nowhere.
"""

import re

_OUTWARD = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each link that leads out by its text and the file's path."""
    return _OUTWARD.sub(lambda link: link[1] if link[1].strip("`") == link[2] else f"{link[1]} (`{link[2]}`)", markdown)
