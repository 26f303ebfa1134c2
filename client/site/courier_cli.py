"""``vitrael site courier``: the part of a site that has the network and nothing to tell."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vitrael.client.site.options import HOME, private_files, utc_now

if TYPE_CHECKING:
    from vitrael.client.site.courier.layout import CourierLayout, Role
    from vitrael.client.site.courier.supervisor import Courier


@click.command()
@HOME
@click.option(
    "--only",
    type=click.Choice(["node", "executor"]),
    help="Run one of the two, so that each can have a user of its own.",
)
@private_files()
def courier(home: Path, only: Literal["node", "executor"] | None) -> None:
    """Carry sealed parcels between the coordinator and the steward until SIGTERM.

    Starts Flower's SuperNode and SuperExec and starts them again when they end. The SuperNode
    reaches the coordinator, through [network].proxy where there is one; nothing of the site is
    reached from outside. GET /health and /metrics answer on 127.0.0.1:[network].metrics_port.

    With --only node the user needs keys/node and authority.pem and no other key; with --only
    executor, flower/superexec.secret and the spool, and no key at all.

    Exits 4 when the coordinator refuses the site's key, or its certificate cannot be trusted and it
    was never connected since its start. One that was connected tries again.

    Example: vitrael site courier --home /srv/vitrael/north
    """
    from vitrael.client.site.courier.layout import CourierLayout  # noqa: PLC0415 - heavy
    from vitrael.client.site.courier.settings import inherited_environment  # noqa: PLC0415
    from vitrael.client.site.courier.supervisor import Courier  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.core.logs import configure_logging  # noqa: PLC0415

    settings = load_settings(home)
    roles: tuple[Role, ...] = ("node", "executor") if only is None else (only,)
    layout = CourierLayout(settings)
    one = Courier(layout, roles, base_environment=inherited_environment(), pid=os.getpid())

    def end(_number: int, _frame: object) -> None:
        one.stop.set()

    signal.signal(signal.SIGTERM, end)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(layout, roles))
        stack.enter_context(configure_logging(layout.open_folder(roles[0]) / "courier.log"))
        port = settings.document.network.metrics_port
        if port is not None and "node" in roles:
            stack.enter_context(_page(port, one))
        click.echo(f"courier of site {settings.name}: {' and '.join(roles)}", err=True)
        one.run(now=utc_now())


def _page(port: int, one: Courier) -> contextlib.AbstractContextManager[int]:
    from vitrael.client.site.courier.layout import ROLES  # noqa: PLC0415 - as above
    from vitrael.client.site.courier.numbers import (  # noqa: PLC0415
        courier_metrics,
        read_metrics,
        resident_tree_bytes,
    )
    from vitrael.client.site.life import is_alive  # noqa: PLC0415
    from vitrael.core.page import Health, serving_page  # noqa: PLC0415

    layout = one.layout

    def up() -> dict[str, bool]:
        """Tell of both halves, also of the one that another command runs."""
        return {
            role: one.is_up(role) if role in one.roles else is_alive(layout.life(role))
            for role in ROLES
        }

    def health() -> Health:
        told = up() | {
            "connected": one.is_connected,
            "steward": is_alive(layout.settings.steward),
        }
        well = all(told.values())
        return Health(well, "ok" if well else "degraded", told)

    def metrics() -> bytes:
        watches = dict(one.watches)
        own = courier_metrics(
            up=up(),
            restarts={role: max(watch.starts - 1, 0) for role, watch in watches.items()},
            is_connected=one.is_connected,
            resident=resident_tree_bytes(one.pid),
        )
        return own + read_metrics(layout.settings.metrics)

    setting = "[network].metrics_port in site.toml"
    return serving_page(port, health=health, metrics=metrics, setting=setting)


@contextlib.contextmanager
def _only_one(layout: CourierLayout, roles: tuple[Role, ...]) -> Iterator[None]:
    """Hold the locks of this home's courier; raise ProcessError when another one has them."""
    import fcntl  # noqa: PLC0415 - only this command needs it

    from vitrael.core.errors import ProcessError, storage_error  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        for role in roles:
            try:
                path = layout.open_folder(role) / "courier.lock"
                file = stack.enter_context(path.open("ab"))
            except OSError as error:
                raise storage_error("the courier's folder", error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ProcessError(
                    f"another courier of site {layout.settings.name} runs",
                    why=f"it holds {path.parent.name}/{path.name}",
                    fix="end it first",
                ) from error
        yield
