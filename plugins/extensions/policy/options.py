"""What a site may set: rules, of which the first that fits an image decides."""

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from crinoid.core.api.config import AbsolutePath, Described, DriverConfig
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.image import ImageReference


class Rule(Described):
    """A rule: which images it is about, and what becomes of them."""

    images: tuple[str, ...] = ()
    """Registry and repository in full form, with * and ? (registry.example/team/*); empty is every image."""
    digests: tuple[str, ...] = ()
    """Digests of indexes or manifests, with * and ?; empty is any. A tag is never looked at: it can mean anything."""
    action: Literal["allow", "deny", "signed"] = "deny"
    """Allow, deny, or allow what is signed by one of the keys."""
    keys: tuple[AbsolutePath, ...] = ()
    """Files of public keys (PEM), for the action signed. They are read at the start."""
    signed_as: tuple[str, ...] = ()
    """With the action signed: what the signature must name as the image's repository, with * and ?; empty is anything,
    as an image may have been copied since. A signature in the bundle form names none."""

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, keys: tuple[Path, ...]) -> tuple[Path, ...]:
        if keys:
            _check_keys(keys)
        return keys

    @model_validator(mode="after")
    def _check(self) -> "Rule":
        if self.action == "signed" and not self.keys:
            raise ValueError('the action "signed" needs keys')
        if self.action != "signed" and (self.keys or self.signed_as):
            raise ValueError(f'keys and signed_as go with the action "signed" alone, not with {self.action}')
        for pattern in self.images:
            _check_pattern(pattern)
        for digest in self.digests:
            if ":" not in digest and digest != "*":
                raise ValueError(f"digest {digest!r} has no algorithm: write sha256:…")
        return self

    def is_about(self, name: str, digests: Iterable[str]) -> bool:
        """Return whether the rule is about an image of a repository, with these digests of index and manifest."""
        return _fits(name, self.images) and (not self.digests or any(_fits(one, self.digests) for one in digests))

    def signs(self, repository: str) -> bool:
        """Return whether a signature that names this repository, or none, is what is wanted."""
        return _fits(repository, self.signed_as)

    def __str__(self) -> str:
        return " ".join(filter(None, (", ".join(self.images) or "every image", ", ".join(self.digests))))


class PolicyOptions(DriverConfig):
    """Which images may run."""

    rules: tuple[Rule, ...] = Field(default=())
    """The first rule that is about an image decides."""
    default: Literal["allow", "deny"] = "deny"
    """What becomes of images that no rule is about."""
    present: Literal["check", "trust"] = "check"
    """Whether images that are on the node, and that this policy has not decided on, are checked when a container is
    made of them, or trusted."""


def _check_keys(keys: tuple[Path, ...]) -> None:
    try:
        from crinoid.plugins.extensions.policy.keys import PublicKey
    except ImportError as error:
        raise ValueError("signatures need the library cryptography: pip install 'crinoid[policy]'") from error
    for path in keys:
        PublicKey(path)


def _check_pattern(pattern: str) -> None:
    """Refuse what can't be the name of an image, such as one with a tag, or the short form of one."""
    plain = pattern.replace("*", "x").replace("?", "x")
    try:
        reference = ImageReference.parse(plain)
    except InvalidArgument as error:
        raise ValueError(f"image {pattern!r} is no registry and repository") from error
    last = plain.rpartition("/")[2]
    if reference.digest or (":" in last and "/" in plain):
        raise ValueError(f"image {pattern!r} has a tag or a digest: rules go by repository, and by digests beside that")
    if pattern != "*" and "*" not in pattern.partition("/")[0] and reference.name != plain:
        raise ValueError(f"image {pattern!r} must be in full form: {reference.name!r}")


def _fits(text: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
