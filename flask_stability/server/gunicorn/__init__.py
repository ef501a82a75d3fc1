"""Everything that depends on gunicorn's internals: `compat` names it all and checks it at start."""
