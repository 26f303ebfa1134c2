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

from vitrael.client.site.courier.layout import CourierLayout
from vitrael.client.site.life import note_of_life
from vitrael.client.site.settings import Limits, Network, SiteDocument, SiteSettings
from vitrael.core.cli import vitrael
from vitrael.server.config import Ports

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


def test_steward_has_the_gpu_under_old_and_new_drivers_and_no_other_device(folder: Path) -> None:
    assert service(folder, "vitrael-steward")["DevicePolicy"] == "closed"
    allowed = lines(folder, "vitrael-steward", "DeviceAllow")
    groups = {"nvidia", "nvidiactl", "nvidia-frontend", "nvidia-uvm", "nvidia-caps"}
    assert set(allowed) == {f"char-{group} rw" for group in groups}


def size_of(text: str) -> int:
    return int(text[:-1]) << {"m": 20, "g": 30}[text[-1].lower()]


def test_a_task_and_its_reply_of_the_largest_size_fit_into_the_node(
    root: Path, folder: Path
) -> None:
    most = 2 * Limits().parcel_bytes
    assert size_of(service(folder, "vitrael-node")["MemoryMax"]) > most
    assert size_of(compose(root, "site")["node"]["mem_limit"]) > most
    assert size_of("1g") < most  # the control


def test_three_users_of_a_site_share_one_group(folder: Path) -> None:
    users = {service(folder, name)["User"] for name in SITE}
    assert users == {"vitrael-steward", "vitrael-node", "vitrael-courier"}
    assert {service(folder, name)["Group"] for name in SITE} == {"vitrael-site"}
    made = (folder / "vitrael-site.sysusers.conf").read_text()
    assert all(f"u {user} -:vitrael-site" in made for user in users)
    rules = (folder / "vitrael-site.tmpfiles.conf").read_text()
    assert f"z {HOME}/keys/node 0640 vitrael-steward vitrael-node" in rules


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


def compose_file(root: Path, name: str) -> dict[str, Any]:
    text = (root / "deploy" / "compose" / f"{name}.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def compose(root: Path, name: str) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = compose_file(root, name)["services"]
    return services


def leads_outside(document: dict[str, Any], name: str) -> bool:
    one = document["services"][name]
    if mode := one.get("network_mode"):
        kind, _, other = mode.partition(":")
        return leads_outside(document, other) if kind == "service" else mode != "none"
    return not all(document["networks"][net].get("internal") for net in one["networks"])


def test_containers_of_a_site_are_as_apart_as_its_units(root: Path) -> None:
    document = compose_file(root, "site")
    site = document["services"]
    assert site["steward"]["network_mode"] == "none"
    assert len({one["user"].split(":")[0] for one in site.values()}) == len(site) == 3
    assert len({one["user"].split(":")[1] for one in site.values()}) == 1
    assert not any("ports" in one for one in site.values())
    assert {name for name in site if leads_outside(document, name)} == {"node"}
    shared = {**site, "executor": {"network_mode": "service:node"}}  # the control
    assert leads_outside({**document, "services": shared}, "executor")


def test_code_that_comes_by_flower_finds_its_supernode_and_no_key_in_a_container(
    root: Path,
) -> None:
    document = compose_file(root, "site")
    site, inside = document["services"], document["networks"]["inside"]
    (alias,) = site["node"]["networks"]["inside"]["aliases"]
    text = (root / "deploy" / "compose" / "site.yaml").read_text()
    assert f'node_host = "{alias}"' in text  # what the operator is told to write
    assert Network(node_host=alias).node_host == alias
    assert inside["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}
    covered = {one.partition(":")[0] for one in site["executor"]["tmpfs"]}
    assert covered == {"/tmp", "/home/vitrael/keys", "/home/vitrael/flower/node"}  # noqa: S108


def test_a_passphrase_does_not_lie_beside_the_keys_it_opens(root: Path) -> None:
    site = compose(root, "site")
    targets = {name: {one["target"] for one in each["volumes"]} for name, each in site.items()}
    assert targets["steward"] - targets["node"] == {"/run/vitrael-passphrase"}
    assert targets["executor"] == targets["node"] == {"/home/vitrael"}


def test_a_container_is_well_while_its_process_runs(root: Path, tmp_path: Path) -> None:
    layout = CourierLayout(SiteSettings(tmp_path, SiteDocument(name="north")))
    notes = {
        "steward": layout.settings.steward,
        "node": layout.life("node"),
        "executor": layout.life("executor"),
    }
    for name, one in compose(root, "site").items():
        kind, program, *words = one["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        assert words[-1] == f"/home/vitrael/{notes[name].relative_to(tmp_path)}"
        command = [sys.executable, *words[:-1], str(notes[name])]
        notes[name].parent.mkdir(parents=True, exist_ok=True)
        with note_of_life(notes[name], {}):
            assert subprocess.run(command, check=False, timeout=60).returncode == 0
        assert subprocess.run(command, check=False, timeout=60).returncode == 1  # the control
    rules = (root / "deploy" / "systemd" / "vitrael-site.tmpfiles.conf").read_text()
    assert f"d {HOME}/flower/executor 0710 " in rules  # the node's half looks there


def test_only_the_door_of_a_coordinator_is_shown(root: Path) -> None:
    services = compose(root, "coordinator")
    assert services["server"]["ports"] == ["${VITRAEL_PORT:-443}:8443"]
    assert services["proxy"]["network_mode"] == "service:server"
    assert services["proxy"]["depends_on"] == {"server": {"condition": "service_healthy"}}
    asked = services["server"]["healthcheck"]["test"][-1]
    assert f"http://127.0.0.1:{Ports().metrics}/health" in asked
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
        assert one["init"] is True  # what a killed courier leaves behind is buried


def test_the_logs_of_the_door_are_turned_over(folder: Path) -> None:
    rules = (folder / "vitrael-proxy.logrotate.conf").read_text()
    assert "maxsize 64M" in rules
    assert "--kill-who=main --signal=USR1 vitrael-proxy.service" in rules  # systemd 249 knows it
    assert service(folder, "vitrael-proxy")["StateDirectory"] == "vitrael-proxy"
    assert "/var/lib/private/vitrael-proxy/*.log" in rules  # where systemd keeps a DynamicUser's


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
