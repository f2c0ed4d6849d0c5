package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"pizzaflow"
	"pizzaflow/kafka"
)

type topicsCmd struct {
	Create   topicsCreateCmd   `cmd:"" default:"1" help:"Create the topics that are missing and list what is needed (the default)."`
	Plan     topicsPlanCmd     `cmd:"" help:"Show in what the topics differ from the options, and what apply would do."`
	Apply    topicsApplyCmd    `cmd:"" help:"Create the topics that are missing, and give the others the settings of the options."`
	Describe topicsDescribeCmd `cmd:"" help:"Show the topics as they are: partitions, leaders, replicas in sync, offsets, settings, and warnings."`
}

// withTopics runs fn with the brokers and topics of the options, and names the option behind an error.
func withTopics[T any](p *program, fn func(kafka.Config, []kafka.Topic) (T, error)) (T, error) {
	brokers, topics, err := p.cfg.Topics()
	if err != nil {
		var none T
		return none, err
	}
	result, err := fn(brokers, topics)
	return result, pizzaflow.KafkaError(err)
}

type topicsCreateCmd struct{}

// Run creates the topics that are missing and lists all.
func (topicsCreateCmd) Run(ctx context.Context, p *program) error {
	topics, err := withTopics(p, func(brokers kafka.Config, topics []kafka.Topic) ([]kafka.Topic, error) {
		return topics, kafka.EnsureTopics(ctx, brokers, p.log, topics...)
	})
	if err != nil {
		return err
	}
	type topic struct {
		Name       string `json:"name"`
		Partitions int    `json:"partitions"`
		Retention  string `json:"retention"`
	}
	var list []topic
	for _, t := range topics {
		list = append(list, topic{t.Name, t.Partitions, t.Retention.String()})
	}
	return show(p, list, "TOPIC\tPARTITIONS\tRETENTION", func(t topic) []any { return []any{t.Name, t.Partitions, t.Retention} })
}

// repartition is the permission to add partitions.
type repartition struct {
	AllowRepartition bool `help:"Add partitions where there are too few. What has a key may then fall to another partition than before: stop the services and let them drain the topics first."`
}

type topicsPlanCmd struct {
	repartition
	Check bool `help:"Exit with 1 when there is a difference."`
}

// Run shows the differences.
func (c topicsPlanCmd) Run(ctx context.Context, p *program) error {
	plan, err := withTopics(p, func(brokers kafka.Config, topics []kafka.Topic) ([]kafka.Difference, error) {
		return kafka.PlanTopics(ctx, brokers, c.AllowRepartition, topics...)
	})
	if err != nil {
		return err
	}
	if err := printPlan(p, plan); err != nil {
		return err
	}
	pending := 0
	for _, d := range plan {
		if d.Action != "leave" {
			pending++
		}
	}
	if len(plan) > 0 {
		fmt.Fprintf(p.stderr, "%s pending, %d left to you. Do them with: pizza topics apply\n", counted(pending, "change"), len(plan)-pending)
	}
	if c.Check && len(plan) > 0 {
		return fmt.Errorf("the topics differ from the options in %s", counted(len(plan), "way"))
	}
	return nil
}

func printPlan(p *program, plan []kafka.Difference) error {
	return list(p, plan, "The topics are as the options say.", "TOPIC\tSETTING\tIS\tWANT\tACTION\tNOTE", func(d kafka.Difference) []any {
		is, action := d.Is, string(d.Action)
		if is == "" {
			is = "-"
		}
		if d.Done {
			action += ", done"
		}
		return []any{d.Topic, d.Setting, is, d.Want, action, d.Why}
	})
}

type topicsApplyCmd struct{ repartition }

// Run gives the topics the settings of the options, and fails when a difference is left.
func (c topicsApplyCmd) Run(ctx context.Context, p *program) error {
	plan, err := withTopics(p, func(brokers kafka.Config, topics []kafka.Topic) ([]kafka.Difference, error) {
		return kafka.ApplyTopics(ctx, brokers, p.log, c.AllowRepartition, topics...)
	})
	if plan == nil && err != nil {
		return err
	}
	if e := printPlan(p, plan); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	left := 0
	for _, d := range plan {
		if !d.Done {
			left++
		}
	}
	if left > 0 {
		return fmt.Errorf("%s left: see the note", counted(left, "difference"))
	}
	return nil
}

type topicsDescribeCmd struct{}

// Run shows the topics as they are.
func (topicsDescribeCmd) Run(ctx context.Context, p *program) error {
	topics, err := withTopics(p, func(brokers kafka.Config, topics []kafka.Topic) ([]kafka.TopicState, error) {
		var names []string
		for _, t := range topics {
			names = append(names, t.Name)
		}
		return kafka.DescribeTopics(ctx, brokers, names...)
	})
	if err != nil {
		return err
	}
	err = show(p, topics, "TOPIC\tPARTITIONS\tREPLICAS\tMIN.INSYNC\tRETENTION.MS\tRETENTION.BYTES\tCLEANUP\tMAX.BYTES", func(t kafka.TopicState) []any {
		s := t.Settings
		return []any{t.Name, len(t.Partitions), t.ReplicationFactor, s["min.insync.replicas"], s["retention.ms"], s["retention.bytes"], s["cleanup.policy"], s["max.message.bytes"]}
	})
	if err != nil || p.json {
		return err
	}
	type row struct{ cells []any }
	var rows []row
	for _, t := range topics {
		for _, q := range t.Partitions {
			rows = append(rows, row{[]any{t.Name, q.Partition, q.Leader, numbers(q.Replicas), numbers(q.ISR), q.Start, q.End}})
		}
	}
	fmt.Fprintln(p.stdout)
	if err := show(p, rows, "TOPIC\tPARTITION\tLEADER\tREPLICAS\tISR\tSTART\tEND", func(r row) []any { return r.cells }); err != nil {
		return err
	}
	for _, t := range topics {
		for _, w := range t.Warnings {
			fmt.Fprintf(p.stderr, "%s: %s\n", t.Name, w)
		}
	}
	return nil
}

// numbers are the ids of brokers, separated by commas.
func numbers(ids []int32) string {
	var out []string
	for _, id := range ids {
		out = append(out, strconv.Itoa(int(id)))
	}
	return strings.Join(out, ",")
}
