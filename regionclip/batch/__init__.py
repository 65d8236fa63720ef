"""Detection on many pictures and videos: results, drawings, and a page to look through them."""
