"""The service files keep apart what must be apart, and systemd accepts them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitrael.core.cli import vitrael

UNITS = (
    "vitrael-server",
    "vitrael-proxy",
    "vitrael-steward",
    "vitrael-node",
    "vitrael-executor",
)
SITE = ("vitrael-steward", "vitrael-node", "vitrael-executor")
HOME = "/var/lib/vitrael/site"


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "deploy" / "systemd"


class _Unit(configparser.RawConfigParser):
    """Keeps the case of keys."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def service(folder: Path, name: str) -> dict[str, str]:
    unit = _Unit(strict=False, comment_prefixes=("#",))
    unit.read(folder / f"{name}.service", encoding="utf-8")
    return dict(unit["Service"])


def lines(folder: Path, name: str, key: str) -> list[str]:
    text = (folder / f"{name}.service").read_text(encoding="utf-8")
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


ANALYZE = shutil.which("systemd-analyze") or ""


@pytest.mark.skipif(not ANALYZE, reason="systemd is not installed")
def test_systemd_accepts_every_unit(folder: Path, tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "vitrael")
    for path in (*folder.glob("*.service"), *folder.glob("*.target")):
        text = path.read_text().replace("/opt/vitrael/bin/vitrael", program)
        if shutil.which("nginx") is None:
            text = text.replace("/usr/sbin/nginx", program)
        (tmp_path / path.name).write_text(text)
    said = subprocess.run(
        [ANALYZE, "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (said.returncode, said.stderr) == (0, "")
    broken = tmp_path / "broken.service"
    broken.write_text("[Service]\nExecStart=/no/such\n")
    control = subprocess.run(
        [ANALYZE, "verify", str(broken)], capture_output=True, check=False, timeout=60
    )
    assert control.returncode != 0


def test_each_unit_runs_a_command_that_there_is(folder: Path) -> None:
    for name in set(UNITS) - {"vitrael-proxy"}:
        _, group, command, *options = service(folder, name)["ExecStart"].split()
        found = vitrael.get_command(None, group)  # type: ignore[arg-type]
        words = found.commands[command]  # type: ignore[union-attr]
        known = {option for one in words.params for option in one.opts}
        assert {option for option in options if option.startswith("--")} <= known


def test_steward_has_no_network_and_no_other_user_s_rights(folder: Path) -> None:
    steward = service(folder, "vitrael-steward")
    assert steward["PrivateNetwork"] == "yes"
    assert steward["RestrictAddressFamilies"] == "AF_UNIX"
    assert steward["LoadCredential"] == "vitrael-passphrase"
    assert "PrivateNetwork" not in service(folder, "vitrael-node")  # the control


def test_three_users_of_a_site_share_one_group(folder: Path) -> None:
    users = {service(folder, name)["User"] for name in SITE}
    assert users == {"vitrael-steward", "vitrael-node", "vitrael-courier"}
    assert {service(folder, name)["Group"] for name in SITE} == {"vitrael-site"}
    made = (folder / "vitrael-site.sysusers.conf").read_text()
    assert all(f"u {user} -:vitrael-site" in made for user in users)
    rules = (folder / "vitrael-site.tmpfiles.conf").read_text()
    assert f"z {HOME}/keys/node 0600 vitrael-node vitrael-site" in rules


def test_code_that_comes_by_flower_sees_no_key_and_no_scan_and_no_host(folder: Path) -> None:
    hidden = " ".join(lines(folder, "vitrael-executor", "InaccessiblePaths")).split()
    for name in ("keys", "cohorts", "records", "updates", "flower/node", "journal.jsonl"):
        assert f"-{HOME}/{name}" in hidden
    executor = service(folder, "vitrael-executor")
    assert (executor["IPAddressDeny"], executor["IPAddressAllow"]) == ("any", "localhost")
    of_node = " ".join(lines(folder, "vitrael-node", "InaccessiblePaths")).split()
    assert f"-{HOME}/keys/signing.pem" in of_node
    assert f"-{HOME}/keys/node" not in of_node  # it needs that one


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_is_closed_and_bounded(folder: Path, name: str) -> None:
    unit = service(folder, name)
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["MemoryMax"]
    assert unit["TasksMax"]
    assert unit["Restart"] == "on-failure"
    assert unit["CapabilityBoundingSet"] in {"", "CAP_NET_BIND_SERVICE"}
    assert ("User" in unit) != ("DynamicUser" in unit)


def test_coordinator_is_reached_through_the_proxy_alone(folder: Path) -> None:
    server = service(folder, "vitrael-server")
    assert (server["IPAddressDeny"], server["IPAddressAllow"]) == ("any", "localhost")
    given = dict(line.split(":", 1) for line in lines(folder, "vitrael-proxy", "LoadCredential"))
    assert set(given) == {"server.pem", "server.key", "superlink.crt"}


def compose(root: Path, name: str) -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((root / "deploy" / "compose" / f"{name}.yaml").read_text())
    services: dict[str, dict[str, Any]] = document["services"]
    return services


def test_containers_of_a_site_are_as_apart_as_its_units(root: Path) -> None:
    site = compose(root, "site")
    assert site["steward"]["network_mode"] == "none"
    assert len({one["user"].split(":")[0] for one in site.values()}) == len(site) == 3
    assert len({one["user"].split(":")[1] for one in site.values()}) == 1
    assert "network_mode" not in site["node"]  # the control
    assert not any("ports" in one for one in site.values())


def test_only_the_door_of_a_coordinator_is_shown(root: Path) -> None:
    services = compose(root, "coordinator")
    assert services["server"]["ports"] == ["${VITRAEL_PORT:-443}:8443"]
    assert services["proxy"]["network_mode"] == "service:server"
    targets = {volume["target"] for volume in services["proxy"]["volumes"]}
    names = ("proxy.conf", "server.pem", "server.key", "superlink.crt")
    assert targets == {f"/run/vitrael/{name}" for name in names}


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_every_container_is_closed_and_bounded(root: Path, name: str) -> None:
    for one in compose(root, name).values():
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert not one["user"].startswith("0")
        assert one["mem_limit"]
        assert one["pids_limit"]


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_compose_accepts_the_files(root: Path, name: str) -> None:
    docker = shutil.which("docker")
    probe = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, check=False, timeout=30
    )
    if not docker or not probe or probe.returncode:
        pytest.skip("docker compose is not installed")
    said = subprocess.run(
        [docker, "compose", "-f", f"deploy/compose/{name}.yaml", "config", "--quiet"],
        cwd=root,
        env={"VITRAEL_SITE_HOME": "/srv", "VITRAEL_SERVER_HOME": "/srv", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (said.returncode, said.stderr) == (0, "")


def test_images_hold_no_secret_and_run_as_nobody_in_particular(root: Path) -> None:
    text = (root / "deploy" / "images" / "Dockerfile").read_text()
    stages = text.split("\nFROM ")
    for name in ("site", "server"):
        (stage,) = (one for one in stages if one.startswith(f"runtime AS {name}"))
        assert "\nUSER 100" in stage
    ignored = (root / "deploy" / "images" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
