"""The contracts of the roles, and drivers that stand in for others; what is wrong is shown with its values."""

import contextlib

with contextlib.suppress(ImportError):  # the fakes serve without pytest, too
    import pytest

    pytest.register_assert_rewrite(
        *(f"{__name__}.{name}" for name in ("binding", "contract", "extensions", "networks", "registries")),
        *(f"{__name__}.{name}" for name in ("runtimes", "snapshotters")),
    )
