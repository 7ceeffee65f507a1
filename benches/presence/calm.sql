select presence.upsert('calm', connection_id => nextval('ages')::text);
