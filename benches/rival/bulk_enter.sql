\set n :n + 1
select upsert('bulk', '{"x": 12345, "tool": "pen"}', :n::text);
