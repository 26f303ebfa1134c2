"""The thin Flower ClientApp of a site: it carries parcels between Flower and the steward.

A message holds the ArrayRecord ``parcel``, one Array of raw bytes an entry (Flower sends it in
chunks), and the ConfigRecord ``terms`` with ``deadline_s``. The reply holds a ``parcel`` of the
same form, or ``terms`` with the sentence ``error``. Nothing is opened here: the courier holds no
key.

A ClientApp that is told to end says so in Flower's own words for one that was lost, so that the
coordinator sends the parcel again. Flower would say nothing, and the coordinator wait in vain.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from vitrael.client.site.courier.spool import call_steward
from vitrael.core.errors import VitraelError
from vitrael.core.rounds import LONGEST_DEADLINE_S

if TYPE_CHECKING:
    from vitrael.core.messages import Parcel

BYTES = "vitrael.bytes"
"""How Flower's Array names a plain byte string."""


def pack(parcel: Parcel) -> ArrayRecord:
    """Return a parcel in Flower's form."""
    return ArrayRecord(
        {name: Array("uint8", (len(data),), BYTES, data) for name, data in parcel.items()}
    )


def unpack(record: ArrayRecord) -> dict[str, bytes]:
    """Return the parcel that Flower carried."""
    return {str(name): array.data for name, array in record.items()}


@contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block when SIGTERM comes, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def deliver(message: Message, context: Context) -> Message:
    """Answer a message with what the steward of this site answers, or with why it does not."""
    home = Path(str(context.node_config["home"]))
    wait_s = min(
        float(str(message.content.config_records["terms"]["deadline_s"])), LONGEST_DEADLINE_S
    )
    try:
        parcel = unpack(message.content.array_records["parcel"])
        with _heeding_sigterm():
            answer = call_steward(home, parcel, wait_s=wait_s)
    except KeyboardInterrupt:
        error = Error(ErrorCode.CLIENT_APP_CRASHED, "the courier was told to end")
        return Message(error, reply_to=message)
    except VitraelError as failure:
        terms = ConfigRecord({"error": failure.sentence()})
        return Message(RecordDict({"terms": terms}), reply_to=message)
    return Message(RecordDict({"parcel": pack(answer)}), reply_to=message)


app = ClientApp()
app.query()(deliver)
app.train()(deliver)
