-- The orders of the module orders.
CREATE SCHEMA orders;

CREATE TABLE orders.orders (
    id uuid PRIMARY KEY,
    item text NOT NULL,
    quantity integer NOT NULL CHECK (quantity > 0),
    state text NOT NULL DEFAULT 'placed' CHECK (state IN ('placed', 'packed', 'cancelled')),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON SCHEMA orders IS 'Orders';
COMMENT ON TABLE orders.orders IS 'Orders, deleted some time after they were cancelled';
COMMENT ON COLUMN orders.orders.id IS 'UUIDv7, so newer orders have greater ids';
COMMENT ON COLUMN orders.orders.item IS 'Name of the item';
COMMENT ON COLUMN orders.orders.quantity IS 'How many of the item';
COMMENT ON COLUMN orders.orders.state IS 'placed, packed or cancelled';
COMMENT ON COLUMN orders.orders.created_at IS 'When it was placed';

CREATE INDEX orders_placed ON orders.orders (id) WHERE state = 'placed';
