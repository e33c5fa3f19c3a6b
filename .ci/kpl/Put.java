import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.kinesis.producer.KinesisProducer;
import software.amazon.kinesis.producer.KinesisProducerConfiguration;
import software.amazon.kinesis.producer.UserRecordResult;
import com.google.common.util.concurrent.ListenableFuture;

/** Puts the lines of its standard input, "partition key TAB data", with the KPL. Prints how many were taken. */
public class Put {
    public static void main(String[] args) throws Exception {
        String stream = args[0];
        int port = Integer.parseInt(args[1]);
        int rate = Integer.parseInt(args[2]); // records a second; 0 for as fast as it goes
        String host = "127.0.0.1";
        KinesisProducerConfiguration configuration = new KinesisProducerConfiguration()
            .setRegion("us-east-1")
            .setCredentialsProvider(StaticCredentialsProvider.create(AwsBasicCredentials.create("local", "local")))
            .setKinesisEndpoint(host).setKinesisPort(port)
            .setCloudwatchEndpoint(host).setCloudwatchPort(port)
            .setStsEndpoint(host).setStsPort(port)
            .setVerifyCertificate(false)
            .setAggregationEnabled(true)
            .setRecordMaxBufferedTime(200)
            .setRecordTtl(60000)
            .setMetricsLevel("none")
            .setLogLevel("warning");
        KinesisProducer producer = new KinesisProducer(configuration);
        List<ListenableFuture<UserRecordResult>> results = new ArrayList<>();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        long begun = System.nanoTime();
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            int tab = line.indexOf('\t');
            byte[] data = line.substring(tab + 1).getBytes(StandardCharsets.UTF_8);
            results.add(producer.addUserRecord(stream, line.substring(0, tab), ByteBuffer.wrap(data)));
            if (results.size() == 1) { // the KPL aggregates once it knows the shards, and asks for them when it first puts
                producer.flushSync();
                Thread.sleep(1000);
                begun = System.nanoTime();
            }
            while (rate > 0 && results.size() > (System.nanoTime() - begun) / 1e9 * rate) {
                Thread.sleep(2);
            }
        }
        producer.flushSync();
        int taken = 0;
        for (ListenableFuture<UserRecordResult> result : results) {
            try {
                taken += result.get().isSuccessful() ? 1 : 0;
            } catch (java.util.concurrent.ExecutionException failed) {
                System.err.println(failed.getCause());
            }
        }
        System.out.println(taken);
        producer.destroy();
        System.exit(taken == results.size() ? 0 : 1);
    }
}
