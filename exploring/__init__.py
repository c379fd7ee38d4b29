"""The page that explore.py writes: its data, and page.html, page.css and page.js, which show them."""
