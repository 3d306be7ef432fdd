# One image for every process of the service; `docker-compose.yml` and the `Procfile` have the commands. The web server
# listens on PORT (8000). All settings come from the environment (`.env.example`). Writes only to /tmp.

FROM python:3.11.16-slim-bookworm AS base

# Wheels only: a dependency that needs a compiler fails the build here, so that the image needs none.
FROM base AS wheels
WORKDIR /build
COPY requirements.txt ./
RUN pip wheel --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes \
    --wheel-dir wheels --requirement requirements.txt

FROM base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1
RUN groupadd --gid 10001 coupons \
    && useradd --uid 10001 --gid coupons --no-create-home --home-dir /app --shell /usr/sbin/nologin coupons
WORKDIR /app

# The wheels are bind-mounted, so they add no layer.
COPY requirements.txt ./
RUN --mount=type=bind,from=wheels,source=/build/wheels,target=/wheels \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore \
        --no-index --find-links /wheels --require-hashes --requirement requirements.txt

COPY manage.py Procfile pyproject.toml ./
COPY templates templates/
# Shown to operators as pages, runbooks among them.
COPY docs docs/
COPY common common/
COPY kafka_bridge kafka_bridge/
COPY coupons coupons/
COPY orders orders/
COPY couponsite couponsite/

# The settings require addresses and a key: these placeholders connect to nothing and sign nothing.
RUN export SECRET_KEY=for-collectstatic-only-which-signs-nothing KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9 \
        DATABASE_URL=postgres://unused@127.0.0.1:9/none REDIS_URL=redis://127.0.0.1:9/0 \
    && python manage.py collectstatic --no-input \
    && python -m compileall -q manage.py common kafka_bridge coupons orders couponsite

# What the processes report as their version: `docker build --build-arg SERVICE_VERSION=0.1.0+$(git rev-parse --short=12 HEAD)`.
# Without it all builds of a version look the same.
ARG SERVICE_VERSION=""
ENV SERVICE_VERSION=$SERVICE_VERSION

# Numeric, so that an orchestrator can verify that it is not root.
USER 10001:10001
EXPOSE 8000
# The Procfile's `web`, which execs the server: so the server itself gets SIGTERM and drains.
CMD ["sh", "-c", "eval \"$(sed -n 's/^web: //p' Procfile)\""]
