"""gRPC settings that both ends share.

``keepalive_time`` and ``keepalive_timeout`` alone do not notice a stalled peer in grpcio 1.85;
``grpc.http2.ping_timeout_ms`` does. A peer that is cut off without a word is so found within the
sum of the two, also when no reply is awaited; where one is, the link's own deadline is shorter.
"""

from __future__ import annotations

from controller.bounds import MAX_MESSAGE_BYTES

_PING_INTERVAL_MS = 250
_PING_TIMEOUT_MS = 500

_COMMON: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _PING_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
)

CLIENT_OPTIONS = (
    *_COMMON,
    ("grpc.keepalive_permit_without_calls", 0),
    # Each reopened session gets a connection of its own, and at once.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Longest wait for a connection within one channel; the link's own limit comes before it.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),
)

SERVER_OPTIONS = (
    *_COMMON,
    # Without these the server calls the client's pings abuse and closes the connection.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_INTERVAL_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
)
