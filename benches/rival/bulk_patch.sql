\set n :n + 1
select upsert('bulk', '{"x": 54321, "tool": "pen"}', :n::text);
