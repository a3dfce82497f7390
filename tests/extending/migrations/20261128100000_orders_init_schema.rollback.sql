DROP TABLE orders.orders;
DROP SCHEMA orders;
