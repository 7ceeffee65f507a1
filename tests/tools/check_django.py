"""By the model of docs/drivers.md."""

import django

django.setup()
from app.models import Online
from django.db import connection

with connection.cursor() as cursor:
    cursor.execute("select member_id from presence.upsert(%s, %s)", ["django", '{"x": 1}'])
    assert cursor.fetchone() == ("alice",)
[found] = Online.objects.filter(room="django")
assert (found.member_id, found.state) == ("alice", {"x": 1})
assert found.expires_at is not None
