"""Every verb and flag of crictl 1.36, as its source has them: there under the same names, or named in docs/ctl.md.

Source: kubernetes-sigs/cri-tools, v1.36.0 and the main branch of 2026-08-13, cmd/crictl.
"""

from pathlib import Path

import click
import pytest

from crinoid.core.cli.ctl import ctl

GUIDE = Path(__file__).parents[5].joinpath("docs/ctl.md").read_text()
TLS = "--tls-sni --tls-server-name --tls-ca --tls-cert --tls-key --transport -r"
PULLING = "--creds --auth --username -u --pull-timeout --pt"
CREATING = f"--no-pull --with-pull --cancel-timeout -T {PULLING}"
LIST = "--verbose -v --quiet -q --output -o --latest -l --last -n --no-trunc"
SHOW = "--output -o --quiet -q --template"
OF_CONTAINERS = "--name --namespace --pod -p --image --state -s --label --latest -l --last -n --all -a"
CRICTL = {
    "": "--config -c --runtime-endpoint -r --image-endpoint -i --timeout -t --debug -D --max-retries --version -v "
    "--enable-tracing --tracing-sampling-rate-per-million --tracing-endpoint --profile-cpu --profile-mem",
    "attach": f"--tty -t --stdin -i {TLS}",
    "checkpoint": "--export -e",
    "completion": "",
    "config": "",
    "create": CREATING,
    "events": "--output -o --template",
    "exec": "--sync -s --timeout --tty -t --interactive -i --name --pod -p --image --state --label --latest -l "
    f"--last -n --quiet -q --ignore-errors -e --parallel -x {TLS}",
    "imagefsinfo": "--output -o --template",
    "images": "--verbose -v --quiet -q --filter -f --output -o --digests --no-trunc --pinned",
    "info": SHOW,
    "inspect": f"{SHOW} {OF_CONTAINERS}",
    "inspecti": f"{SHOW} --name --filter -f",
    "inspectp": f"{SHOW} --name --namespace --state -s --label --latest -l --last -n",
    "logs": "--follow -f --previous -p --reopen -r --tail --limit-bytes --since --timestamps -t --stream -s",
    "metricdescs": "--output -o",
    "metricsp": "--output -o --watch -w",
    "pods": f"{LIST} --id --name --namespace --state -s --label",
    "port-forward": TLS,
    "ps": f"{LIST} --id --name --namespace --pod -p --image --state -s --label --all -a --resolve-image-path -r",
    "pull": f"{PULLING} --pod-config --annotation -a --cancel-timeout -T",
    "rm": "--force -f --keep-logs -k --all -a",
    "rmi": "--all -a --prune -q",
    "rmp": "--force -f --all -a",
    "run": f"{CREATING} --runtime -r",
    "runp": "--runtime -r --cancel-timeout -T",
    "runtime-config": "",
    "start": "",
    "stats": "--all -a --id --pod -p --label --output -o --seconds -s --watch -w",
    "statsp": "--id --label --output -o --seconds -s --watch -w",
    "stop": "--timeout -t --all -a",
    "stopp": "",
    "update": "--cpu-count --cpu-maximum --cpu-period --cpu-quota --cpu-share --memory --cpuset-cpus --cpuset-mems "
    "--oom-score-adj",
    "update-runtime-config": "--pod-cidr -p",
    "version": "",
}
"""Verbs with their flags, the global ones under the empty name."""


@pytest.mark.parametrize("verb", CRICTL)
def test_each_flag_of_crictl_is_here_or_in_the_guide(verb: str) -> None:
    assert isinstance(ctl, click.Group)
    context = click.Context(ctl)
    if verb == "config":
        assert "no `config`" in GUIDE
        return
    command = ctl.get_command(context, verb) if verb else ctl
    assert command is not None
    ours = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    missing = [flag for flag in CRICTL[verb].split() if flag not in ours]
    assert [flag for flag in missing if f"`{flag}`" not in GUIDE and f" {flag}`" not in GUIDE] == []
