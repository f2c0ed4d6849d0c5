import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.DebeziumEngine.RecordCommitter;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import java.io.FileInputStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Future;
import java.util.ArrayList;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * An outbox relay made of Debezium's engine, with its outbox event router, and of Kafka's own producer: what a
 * Connect cluster would run, in one process. Two arguments: the properties of the engine and those of the producer.
 * A batch is marked as processed when every record of it is acknowledged.
 */
public class OutboxRelay {
  public static void main(String[] files) throws Exception {
    Properties engineProperties = read(files[0]);
    var producer = new KafkaProducer<>(read(files[1]), new ByteArraySerializer(), new ByteArraySerializer());
    var ended = new CountDownLatch(1);
    var engine = DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
        .using(engineProperties)
        .notifying((batch, committer) -> relay(producer, batch, committer))
        .using((success, message, error) -> {
          if (!success) System.err.println("engine ended: " + message + " " + error);
        })
        .build();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      try {
        engine.close();
        ended.await();
      } catch (Exception e) {
        System.err.println("stop: " + e);
      }
    }));
    engine.run();
    ended.countDown();
  }

  static void relay(KafkaProducer<byte[], byte[]> producer, List<RecordChangeEvent<SourceRecord>> batch,
      RecordCommitter<RecordChangeEvent<SourceRecord>> committer) throws InterruptedException {
    List<Future<RecordMetadata>> sent = new ArrayList<>(batch.size());
    for (var change : batch) {
      SourceRecord r = change.record();
      var out = new ProducerRecord<>(r.topic(), bytes(r.key()), bytes(r.value()));
      r.headers().forEach(h -> out.headers().add(h.key(), bytes(h.value())));
      sent.add(producer.send(out));
    }
    producer.flush();
    try {
      for (var s : sent) s.get();
    } catch (java.util.concurrent.ExecutionException e) {
      throw new IllegalStateException("produce", e.getCause());
    }
    for (var change : batch) committer.markProcessed(change);
    committer.markBatchFinished();
  }

  static byte[] bytes(Object o) {
    if (o == null || o instanceof byte[]) return (byte[]) o;
    return o.toString().getBytes(StandardCharsets.UTF_8);
  }

  static Properties read(String file) throws Exception {
    var p = new Properties();
    try (var in = new FileInputStream(file)) {
      p.load(in);
    }
    return p;
  }
}
