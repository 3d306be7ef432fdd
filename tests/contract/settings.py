"""The project's settings, but for a password that is looked at in no time: a search logs in a hundred times."""

from couponsite.settings import *  # noqa: F403

# The first is what a password is stored with from its first use on.
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
