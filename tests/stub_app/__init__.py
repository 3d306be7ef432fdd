"""A small app that uses kafka_bridge as any Django project may: bookings of the seats of a room."""
