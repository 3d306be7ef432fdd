# One image for every process of the service: `docker-compose.yml` says which, the `Procfile` how. It listens on PORT
# (8000), takes all settings from the environment (`.env.example`) and writes nowhere but to /tmp.

FROM python:3.11.16-slim-bookworm AS base

# Wheels only: whatever would need a compiler stops the build here, instead of bringing one along.
FROM base AS wheels
WORKDIR /build
COPY requirements.txt ./
RUN pip wheel --no-cache-dir --disable-pip-version-check --only-binary :all: --wheel-dir wheels \
    --requirement requirements.txt

FROM base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1
RUN groupadd --gid 10001 coupons \
    && useradd --uid 10001 --gid coupons --no-create-home --home-dir /app --shell /usr/sbin/nologin coupons
WORKDIR /app

# The wheels are only looked at: they leave no layer.
COPY requirements.txt ./
RUN --mount=type=bind,from=wheels,source=/build/wheels,target=/wheels \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore \
        --no-index --find-links /wheels --requirement requirements.txt

COPY manage.py Procfile ./
COPY templates templates/
COPY common common/
COPY kafka_bridge kafka_bridge/
COPY coupons coupons/
COPY orders orders/
COPY couponsite couponsite/

# The settings want addresses and a key to load at all: these lead nowhere and sign nothing.
RUN export SECRET_KEY=for-collectstatic-only-which-signs-nothing KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9 \
        DATABASE_URL=postgres://nobody@127.0.0.1:9/none REDIS_URL=redis://127.0.0.1:9/0 \
    && python manage.py collectstatic --no-input \
    && python -m compileall -q manage.py common kafka_bridge coupons orders couponsite

# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
# The Procfile's `web`, which ends by replacing the shell: so the server gets SIGTERM and drains.
CMD ["sh", "-c", "eval \"$(sed -n 's/^web: //p' Procfile)\""]
