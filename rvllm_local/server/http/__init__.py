"""What concerns every HTTP request alike: who may ask, bodies, replies and problems."""
