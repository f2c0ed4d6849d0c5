import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import org.apache.kafka.common.utils.Exit;

/** Runs Apache Kafka's command-line tools, each as if by its script, in one machine: a start takes a second.
 *  A line of input is what the tool reads, its class and its arguments, separated by tabs and in base64; behind
 *  what it prints comes a line with its exit code. */
public class Tools {
    static class Ended extends RuntimeException {
        final int code;
        Ended(int code) { super(null, null, false, false); this.code = code; }
    }

    public static void main(String[] none) throws Exception {
        Exit.setExitProcedure((code, message) -> { throw new Ended(code); });
        Exit.setHaltProcedure((code, message) -> { throw new Ended(code); });
        List<Runnable> hooks = new ArrayList<>();
        Exit.setShutdownHookAdder((name, hook) -> hooks.add(hook));
        PrintStream out = System.out;
        System.setErr(out);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            List<String> words = new ArrayList<>();
            for (String w : line.split("\t", -1)) words.add(new String(Base64.getDecoder().decode(w), StandardCharsets.UTF_8));
            System.setIn(new ByteArrayInputStream(words.get(0).getBytes(StandardCharsets.UTF_8)));
            int code = 0;
            try {
                String[] args = words.subList(2, words.size()).toArray(new String[0]);
                Class.forName(words.get(1)).getMethod("main", String[].class).invoke(null, (Object) args);
            } catch (java.lang.reflect.InvocationTargetException e) {
                Throwable t = e.getCause();
                while (t.getCause() != null && !(t instanceof Ended)) t = t.getCause();
                code = t instanceof Ended ? ((Ended) t).code : 1;
                if (!(t instanceof Ended)) e.getCause().printStackTrace(out);
            }
            for (Runnable hook : hooks) hook.run();
            hooks.clear();
            out.println("\nended " + code);
            out.flush();
        }
    }
}
