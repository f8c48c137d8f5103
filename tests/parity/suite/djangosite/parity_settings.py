import os

SECRET_KEY = "of the parity suite"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "unused.sqlite3",
                         # Without a name it is in memory.
                         "TEST": {"NAME": os.environ.get("PARITY_DATABASE")}}}
ROOT_URLCONF = "parity_urls"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
