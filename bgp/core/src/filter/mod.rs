//! Import and export rules. The built-in ones now; statements of users join them later.
