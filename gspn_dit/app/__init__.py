"""A page to play with a run in a browser: python -m gspn_dit.app RUN_OR_ID (needs the extra `app`, Gradio)."""
