-- +goose Up

-- SQLite has no storage settings.
SELECT 1;
