"""librdkafka's C producer: unlike the Python client it accepts header names of any bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import confluent_kafka.cimpl

_PRODUCER = 0
_TOPIC, _VALUE, _KEY, _MSGFLAGS, _TIMESTAMP, _HEADERS = 1, 4, 5, 7, 8, 10
_COPY = 2
_ERROR_BYTES = 512


class _Memory(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class _Union(ctypes.Union):
    _fields_ = [
        ("text", ctypes.c_char_p),
        ("number", ctypes.c_int),
        ("long_number", ctypes.c_int64),
        ("memory", _Memory),
        ("pointer", ctypes.c_void_p),
        ("padding", ctypes.c_char * 64),
    ]


class _Argument(ctypes.Structure):
    """``rd_kafka_vu_t``."""

    _fields_ = [("kind", ctypes.c_int), ("value", _Union)]


_Report = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)


class RawProducer:
    """Sends messages as bytes; messages that the broker refuses are dropped.

    ``refused`` has the error code of each dropped message.
    """

    def __init__(self, config: Mapping[str, str]) -> None:
        """``config``: librdkafka properties. Raises ValueError for an invalid one."""
        self._library = _library()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        options = self._library.rd_kafka_conf_new()
        for name, value in config.items():
            if self._library.rd_kafka_conf_set(options, name.encode(), value.encode(), error, _ERROR_BYTES) != 0:
                raise ValueError(error.value.decode())
        self.refused: list[int] = []
        # The first field of rd_kafka_message_t is the error code; 0 is success.
        self._report = _Report(lambda client, message, opaque: self.refused.extend(message[:1] if message[0] else ()))
        self._library.rd_kafka_conf_set_dr_msg_cb(options, self._report)
        self._client = self._library.rd_kafka_new(_PRODUCER, options, error, _ERROR_BYTES)
        if not self._client:
            raise ValueError(error.value.decode())

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[bytes, bytes | None]] = (),
        timestamp: int = 0,
    ) -> bool:
        """Queue a message; return False if the client refuses it. ``timestamp`` in ms since 1970, 0 for now."""
        lists = self._library.rd_kafka_headers_new(len(headers))
        for name, content in headers:
            size = -1 if content is None else len(content)
            self._library.rd_kafka_header_add(lists, name, len(name), content, max(size, 0))
        arguments = [
            _argument(_TOPIC, text=topic.encode()),
            _argument(_VALUE, memory=_Memory(value, len(value or b""))),
            _argument(_KEY, memory=_Memory(key, len(key or b""))),
            _argument(_MSGFLAGS, number=_COPY),
            _argument(_HEADERS, pointer=lists),
        ]
        if timestamp:
            arguments.append(_argument(_TIMESTAMP, long_number=timestamp))
        error = self._library.rd_kafka_produceva(self._client, (_Argument * len(arguments))(*arguments), len(arguments))
        if error:
            self._library.rd_kafka_error_destroy(error)
            self._library.rd_kafka_headers_destroy(lists)
        self._library.rd_kafka_poll(self._client, 0)
        return not error

    def flush(self, seconds: float = 30.0) -> bool:
        """Wait until every message is acknowledged or refused; return False after ``seconds``."""
        return bool(self._library.rd_kafka_flush(self._client, round(seconds * 1000)) == 0)

    def close(self) -> None:
        """Flush and destroy the client."""
        self.flush()
        self._library.rd_kafka_destroy(self._client)


def _argument(kind: int, **value: Any) -> _Argument:
    return _Argument(kind, _Union(**value))


def _library() -> ctypes.CDLL:
    # Loaded through the Python client's module, which is linked with it: the library's name differs between wheels.
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    pointer, text, size, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, size]),
        ("rd_kafka_conf_set_dr_msg_cb", None, [pointer, _Report]),
        ("rd_kafka_new", pointer, [number, pointer, text, size]),
        ("rd_kafka_headers_new", pointer, [size]),
        ("rd_kafka_header_add", number, [pointer, text, ctypes.c_ssize_t, text, ctypes.c_ssize_t]),
        ("rd_kafka_headers_destroy", None, [pointer]),
        ("rd_kafka_produceva", pointer, [pointer, pointer, size]),
        ("rd_kafka_error_destroy", None, [pointer]),
        ("rd_kafka_poll", number, [pointer, number]),
        ("rd_kafka_flush", number, [pointer, number]),
        ("rd_kafka_destroy", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
