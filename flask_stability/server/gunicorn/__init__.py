"""What depends on how gunicorn is made inside: `compat` names it all and checks it at start."""
