"""Who takes over: one at a time. What happens then is in ``integration/test_takeover.py``."""

from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import Config
from crinoid.core.daemon.takeover import only_successor


def test_of_several_successors_one_takes_over(tmp_path: Path) -> None:
    config = Config(root=tmp_path / "root", run=tmp_path / "run")
    (config.run / "pods").mkdir(parents=True)
    with only_successor(config):
        with pytest.raises(ConfigurationError, match="another crinoid is taking over"), only_successor(config):
            pass
        with only_successor(Config(root=tmp_path / "root", run=tmp_path / "elsewhere")):
            pass
    with only_successor(config):
        pass
