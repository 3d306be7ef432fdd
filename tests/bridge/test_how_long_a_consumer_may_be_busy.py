"""A consumer that does not poll loses its partitions, and for as long others wait for one that is gone unnoticed.

librdkafka takes no session that is longer than that, which shows how long it is.
"""

import pytest
from pytest_django import Settings

from kafka_bridge.client import check_client_options, make_consumer
from kafka_bridge.errors import BadClientOptions
from tests.stub_app.consumer_groups import BOOKINGS, NOTICES
from tests.support.kafka import consume_everything

TWO_MINUTES = {"session.timeout.ms": 120_000}


def test_longer_sessions_than_a_consumer_may_be_busy_stop_the_start(settings: Settings) -> None:
    settings.KAFKA_CONSUMER_CONFIG = TWO_MINUTES
    with pytest.raises(BadClientOptions, match=r"KAFKA_CONSUMER_CONFIG: .*max\.poll\.interval\.ms"):
        check_client_options()
    settings.KAFKA_CONSUMER_CONFIG = {**TWO_MINUTES, "max.poll.interval.ms": 120_000}
    check_client_options()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("topics")
def test_only_who_calls_out_may_be_busy_for_minutes(settings: Settings) -> None:
    assert (BOOKINGS.call is None, NOTICES.call is None) == (True, False)
    settings.KAFKA_CONSUMER_CONFIG = TWO_MINUTES
    consume_everything(NOTICES)
    with pytest.raises(Exception, match=r"max\.poll\.interval\.ms"):
        consume_everything(BOOKINGS)


def test_effects_that_share_an_id_may_be_busy_one_after_the_other(settings: Settings) -> None:
    settings.KAFKA_CONSUMER_CONFIG = {"session.timeout.ms": 500_000}
    with pytest.raises(Exception, match=r"max\.poll\.interval\.ms"):
        make_consumer("shared", calls_out=[True, False, False])
    make_consumer("shared", calls_out=[True, True]).close()
