//! The pure core: ids, token classes, money, price book, rating, quota arithmetic, control state, invoice preview.
