"""pytest-django: the database is set up once, outside, and used inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inner import BothWays, RunInner

SETTINGS = """
SECRET_KEY = "x"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {name!r}, "TEST": {{"NAME": {test!r}}}}}}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions",
    "notes"]
ROOT_URLCONF = "notes.urls"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True
STATIC_URL = "/static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""

TESTS = """
import urllib.request
import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.db import connection, transaction
from notes.models import Note

@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker, tmp_path_factory):
    with django_db_blocker.unblock():
        Note.objects.create(text="from the session")
    with (tmp_path_factory.getbasetemp() / "set-up").open("a") as file: file.write("x")

def texts(): return sorted(Note.objects.values_list("text", flat=True))

@pytest.mark.django_db
def test_writes():
    Note.objects.create(text="own")
    assert texts() == ["from the session", "own"]
@pytest.mark.django_db
def test_sees_nothing_of_it(tmp_path_factory):
    assert texts() == ["from the session"]
    assert (tmp_path_factory.getbasetemp() / "set-up").read_text() == "x"
def test_blocked(): Note.objects.count()
def test_fixture(db): assert User.objects.create_user("u", password="p").check_password("p")
def test_client(client, db):
    Note.objects.create(text="own")
    assert client.get("/").content == b"from the session,own"
def test_admin(admin_client): assert admin_client.session
def test_settings(settings): settings.SECRET_KEY = "other"; assert settings.SECRET_KEY == "other"
def test_settings_are_back(settings): assert settings.SECRET_KEY == "x"
def test_mail(mailoutbox):
    mail.send_mail("subject", "body", "a@example.org", ["b@example.org"])
    assert len(mailoutbox) == 1
@pytest.mark.django_db
def test_queries(django_assert_num_queries):
    with django_assert_num_queries(1): texts()
@pytest.mark.django_db
def test_too_many_queries(django_assert_num_queries):
    with django_assert_num_queries(0): texts()
@pytest.mark.django_db
def test_on_commit(django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        transaction.on_commit(lambda: Note.objects.create(text="committed"))
    assert len(callbacks) == 1 and "committed" in texts()
@pytest.mark.django_db(transaction=True)
def test_transaction():
    with transaction.atomic(): Note.objects.create(text="real")
    assert "real" in texts() and not connection.in_atomic_block
def read(url):
    with urllib.request.urlopen(url, timeout=20) as answer: return answer.read()
def test_live(live_server):
    Note.objects.create(text="served")
    assert b"served" in read(live_server.url)
"""

CASES = """
from django.test import TestCase, TransactionTestCase
from notes.models import Note
class TestNotes(TestCase):
    @classmethod
    def setUpTestData(cls): cls.note = Note.objects.create(text="of the class")
    def test_one(self): self.note.delete(); self.assertFalse(Note.objects.filter(text="of the class"))
    def test_two(self): self.assertTrue(Note.objects.filter(text="of the class"))
    def test_client(self): self.assertContains(self.client.get("/"), "of the class")
    def test_fails(self): self.assertQuerySetEqual(Note.objects.none(), [1])
class TestTransactions(TransactionTestCase):
    def test_one(self): Note.objects.create(text="t"); self.assertEqual(Note.objects.filter(text="t").count(), 1)
    def test_two(self): self.assertEqual(Note.objects.filter(text="t").count(), 0)
"""


HOST = """
import urllib.request, pytest
from notes.models import Note
@pytest.mark.crate(network="host")
def test_live_on_the_hosts_network(live_server):
    Note.objects.create(text="there too")
    with urllib.request.urlopen(live_server.url, timeout=20) as answer: assert b"there too" in answer.read()
"""


def _project(pytester: pytest.Pytester, *, name: str, test: str | None) -> None:
    pytester.makeini("[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .")
    pytester.makepyfile(settings=SETTINGS.format(name=name, test=test), test_notes=TESTS, test_cases=CASES)
    app = pytester.mkpydir("notes")
    (app / "models.py").write_text(
        "from django.db import models\nclass Note(models.Model):\n    text = models.CharField(max_length=99)\n"
    )
    (app / "urls.py").write_text(
        "from django.http import HttpResponse\nfrom django.urls import path\nfrom notes.models import Note\n"
        "def index(request):\n"
        "    return HttpResponse(','.join(sorted(note.text for note in Note.objects.all())))\n"
        "urlpatterns = [path('', index)]\n"
    )


@pytest.mark.parametrize("kind", ["in memory", "file"])
def test_django(pytester: pytest.Pytester, both_ways: BothWays, kind: str) -> None:
    """sqlite in memory and in a file: own transactions and real ones, Django's test cases, clients, a live server."""
    in_memory = kind == "in memory"
    _project(pytester, name=":memory:" if in_memory else "db.sqlite3", test=None if in_memory else "t.sqlite3")
    # Django moves tests without transactions to the front; those with real ones empty the tables at their end.
    run = both_ways("-rA", "--create-db", plugins=["django"])
    assert run.outcomes() == {"passed": 17, "failed": 3}
    assert "Database access not allowed" in run.of("test_blocked")["longrepr"]
    assert not (pytester.path / "t.sqlite3").exists()


def test_workers_and_reuse(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--reuse-db keeps the file that was set up outside; each worker has its own."""
    _project(pytester, name="db.sqlite3", test="t.sqlite3")
    pytester.makepyfile(test_host=HOST)
    host = run_inner("--crate-all", "test_host.py", plugins=["django"])
    assert host.outcomes() == {"passed": 1}
    (pytester.path / "test_host.py").unlink()
    first = run_inner("--crate-all", "-n2", "--reuse-db", plugins=["django", "xdist"])
    assert first.outcomes() == {"passed": 17, "failed": 3}
    assert {path.name for path in Path(pytester.path).glob("t*.sqlite3*")} == {"t.sqlite3_gw0", "t.sqlite3_gw1"}
