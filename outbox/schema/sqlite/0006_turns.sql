-- +goose Up

-- To find what is due of the types that a program handles, whatever others wait for.
CREATE INDEX parked_records_turn ON parked_records (consumer, event_type, due_at) WHERE state = 'retrying';

-- To find the dead among many that wait, and what is done and old.
CREATE INDEX parked_records_dead ON parked_records (consumer, topic) WHERE state = 'dead';
CREATE INDEX parked_records_done ON parked_records (consumer, finished_at) WHERE finished_at IS NOT NULL;

-- To find what operators name, whichever group it was parked by.
CREATE INDEX parked_records_event ON parked_records (event_id);
