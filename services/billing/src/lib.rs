//! Control API, usage, costs, balances, invoice preview and the console.
