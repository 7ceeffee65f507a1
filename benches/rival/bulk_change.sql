\set n :n + 1
select upsert('bulk', '{"x": 23456, "tool": "pen"}', :n::text);
