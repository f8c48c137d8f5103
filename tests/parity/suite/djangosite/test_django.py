"""pytest-django: a database made once, and transactions around tests."""

import pytest
from django.contrib.auth.models import User
from django.test import TestCase


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    import orderlog

    orderlog.log("database made")
    # A test with transactions empties the database when it ends; sandboxed, that is not the one of the next run.
    with django_db_blocker.unblock():
        if not User.objects.filter(username="session").exists():
            User.objects.create_user("session", password="x")


@pytest.mark.django_db
def test_creates():
    User.objects.create_user("ada")
    assert set(User.objects.values_list("username", flat=True)) == {"ada", "session"}


@pytest.mark.django_db
def test_is_rolled_back():
    assert list(User.objects.values_list("username", flat=True)) == ["session"]


def test_database_is_blocked():
    User.objects.count()


@pytest.mark.django_db
def test_admin(admin_client, admin_user):
    assert admin_user.is_superuser
    assert admin_client.get("/hello/?name=x").content == b"hello x"


def test_client(client):
    assert client.get("/hello/?name=y").content == b"hello y"


def test_settings(settings):
    settings.SECRET_KEY = "another"


def test_settings_are_undone(settings):
    assert settings.SECRET_KEY == "of the parity suite"


@pytest.mark.django_db
def test_queries(django_assert_num_queries):
    with django_assert_num_queries(2):
        User.objects.count()


def test_mail(mailoutbox):
    from django.core.mail import send_mail

    send_mail("subject", "body", "from@example.invalid", ["to@example.invalid"])
    assert len(mailoutbox) == 1


class TestUnittestStyle(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.user = User.objects.create_user("class")

    def test_one(self):
        assert User.objects.count() == 2
        User.objects.create_user("gone")

    def test_two(self):
        assert User.objects.count() == 2

    def test_fails(self):
        self.assertContains(self.client.get("/hello/"), "bye")


@pytest.mark.django_db(transaction=True)
def test_transaction():
    User.objects.create_user("committed")
