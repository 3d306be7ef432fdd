"""A producer below Python's: through the C API a record can carry what confluent-kafka refuses to send."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka
from django.conf import settings

from kafka_bridge.registry import prefixed

# Of librdkafka's rdkafka.h: tags of the arguments of rd_kafka_producev, and a message flag.
_END, _TOPIC, _VALUE, _KEY, _MSGFLAGS, _TIMESTAMP, _HEADERS = 0, 1, 4, 5, 7, 8, 10
_COPY = 2
_PRODUCER = 0

_Delivered = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)


class RawRecord(NamedTuple):
    """``timestamp`` in ms since 1970, 0 for now; names of headers are any bytes."""

    value: bytes | None
    key: bytes | None = b"K"
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp: int = 0


def produce_raw(topic: str, records: Sequence[RawRecord]) -> None:
    """Put ``records`` on a topic (named without prefix), each in a batch of its own, and wait until they are there.

    Raises KafkaException if the broker refuses one; the others are there.
    """
    library, errors = _library(), list[int]()
    report = _Delivered(lambda client, message, opaque: errors.append(message[0]))
    text = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    for name, value in (
        (b"bootstrap.servers", settings.KAFKA_BOOTSTRAP_SERVERS.encode()),
        (b"partitioner", b"murmur2_random"),
        # The broker refuses a whole batch for the timestamp of one of its records.
        (b"batch.num.messages", b"1"),
    ):
        assert library.rd_kafka_conf_set(conf, name, value, text, len(text)) == 0, text.value
    library.rd_kafka_conf_set_dr_msg_cb(conf, report)
    client = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, conf, text, len(text)))
    assert client, text.value
    try:
        for record in records:
            assert _produce(library, client, prefixed(topic).encode(), record) == 0
        assert library.rd_kafka_flush(client, 30_000) == 0
    finally:
        library.rd_kafka_destroy(client)
    assert len(errors) == len(records)
    if refused := [error for error in errors if error]:
        raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(refused[0]))


def _produce(library: Any, client: ctypes.c_void_p, topic: bytes, record: RawRecord) -> int:
    headers = ctypes.c_void_p(library.rd_kafka_headers_new(len(record.headers)))
    for name, value in record.headers:
        library.rd_kafka_header_add(headers, name, _size(name), value, _size(value))
    error: int = library.rd_kafka_producev(
        client,
        *(_TOPIC, topic),
        *(_VALUE, record.value, _size(record.value)),
        *(_KEY, record.key, _size(record.key)),
        *(_MSGFLAGS, _COPY),
        *(_TIMESTAMP, ctypes.c_int64(record.timestamp)),
        *(_HEADERS, headers),
        _END,
    )
    return error


def _size(data: bytes | None) -> ctypes.c_size_t:
    return ctypes.c_size_t(len(data or b""))


@cache
def _library() -> Any:
    """The librdkafka that confluent-kafka brings along."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    for name in ("conf_new", "new", "headers_new"):
        getattr(library, f"rd_kafka_{name}").restype = ctypes.c_void_p
    library.rd_kafka_conf_set_dr_msg_cb.restype = None
    library.rd_kafka_destroy.restype = None
    return library
