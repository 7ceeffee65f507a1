select presence.heartbeat('audience-' || :tokens, 'm');
